/* fixed64-v1: acc[i] += rint(g[i] * 2^44), ties to even. Returns how many values were out of range, NaN or Inf
   (these add nothing; the caller stops the step). No -ffast-math: the multiplication by a power of two is exact. */
#include <math.h>
#include <stdint.h>

int64_t tripod_quantise_add(int64_t *restrict acc, const float *restrict g, int64_t n, float limit)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        float scaled = g[i] * 17592186044416.0f;
        int in_range = fabsf(scaled) < limit;
        bad += !in_range;
        acc[i] += in_range ? (int64_t)llrintf(scaled) : 0;
    }
    return bad;
}

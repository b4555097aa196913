"""Checkpoints to tidy tables, tables to figures, figures to one report.

Guarantees: every number in the report comes from a table in ``runs/<suite>/analysis/`` keyed by
rung, step and weights root; weights are read from the suite's local Hub by revision and their root
is recomputed before they are scored; a table row is computed once per (weights, inputs,
definition).

Imports ``data_pipeline`` and ``checkpoints_manifest``, never ``suite``: what is measured here can
be measured by somebody who did not train it.
"""

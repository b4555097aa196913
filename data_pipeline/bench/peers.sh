#!/bin/sh
# Make one virtual environment for each library that fetch.py compares with:
#   sh data_pipeline/bench/peers.sh DIR [PYTHON]      then   fetch.py --venvs DIR
# Their pins clash (mosaicml-streaming wants numpy < 2.2), so each has its own. One that cannot be
# installed is named, left out of the tables, and makes the exit status 1.
set -u
dir=${1:?give the directory for the environments}
python=${2:-python3.11}
status=0

peer() {
    name=$1
    shift
    [ -f "$dir/$name/.installed" ] && return
    rm -rf "${dir:?}/$name"
    if "$python" -m venv "$dir/$name" &&
        "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; then
        touch "$dir/$name/.installed"
        echo "$name: installed ($*)"
    else
        status=1
        echo "$name: could not be installed ($*)" >&2
    fi
}

mkdir -p "$dir"
peer torchdata torch==2.13.0 numpy==2.4.6 torchdata==0.11.0
peer datasets torch==2.13.0 numpy==2.4.6 datasets==5.2.0
peer litdata torch==2.13.0 numpy==2.4.6 litdata==0.2.76 "boto3>=1.35"
peer mosaicml torch==2.13.0 mosaicml-streaming==0.13.0 torchvision
exit $status

#!/usr/bin/env bash
# Measures networks against a data set three times: all heads, those seen from the front, those seen from the back.
#
#   DATA=A.zip ./get_metrics.sh X.pkl Y.pkl
#   NETWORK=X.pkl DATA=A.zip METRICS=fid50k_full,kid50k_full FEATURES=inception-2015-12-05.pt ./get_metrics.sh
#
# One JSON line per network, metric and mode; appended to metric-NAME.jsonl beside each network too. All of the following can be
# set in the environment.
set -euo pipefail

NETWORK=${NETWORK:-demo}              # network file, address or demo, where none is named on the command line
DATA=${DATA:-}                        # images with dataset.json; left empty: synthetic heads are written and used
SEG=${SEG:-}                          # their masks, for metrics that use masks
METRICS=${METRICS:-frechet_seeded}    # names with commas between
FEATURES=${FEATURES:-}                # feature network or file of one; left empty: each metric's own
NUM=${NUM:-}                          # generated images; left empty: each metric's own number
MODES=${MODES:-all front back}
BATCH=${BATCH:-16}
SEED=${SEED:-0}
GPUS=${GPUS:-1}                       # processes
DEVICE=${DEVICE:-auto}
OUTDIR=${OUTDIR:-metrics_out}         # for the synthetic heads
NUM_SYNTHETIC=${NUM_SYNTHETIC:-200}   # heads written where DATA is empty

[ $# -gt 0 ] || set -- "$NETWORK"     # the networks from here on

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-$(ls "$HERE/.venv/bin/python" 2>/dev/null || echo python3)}
export PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}

if [ -z "$DATA" ]; then
    SIZE=$("$PYTHON" - "$1" <<'END'
import sys
from dnnlib import UserError
from training.snapshot import load_network
try:
    print(load_network(sys.argv[1]).img_resolution)
except UserError as error:
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(2)
END
    )
    DATA=$OUTDIR/synthetic$SIZE
    if [ ! -f "$DATA/dataset.json" ]; then
        echo "DATA is not set: writing $NUM_SYNTHETIC synthetic heads to $DATA" >&2
        "$PYTHON" "$HERE/dataset_tool_seg.py" --synthetic "$NUM_SYNTHETIC" --resolution "${SIZE}x$SIZE" --img_dest "$DATA" >&2
    fi
fi

NETWORKS=()
for X in "$@"; do NETWORKS+=(--network "$X"); done
for MODE in $MODES; do
    "$PYTHON" "$HERE/calc_metrics.py" "${NETWORKS[@]}" --data "$DATA" ${SEG:+--seg "$SEG"} --metrics "$METRICS" \
        ${FEATURES:+--features "$FEATURES"} ${NUM:+--num "$NUM"} --mode "$MODE" --batch "$BATCH" --seed "$SEED" --gpus "$GPUS" \
        --device "$DEVICE"
done

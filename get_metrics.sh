#!/usr/bin/env bash
# Measures a network against a data set three times: all heads, those seen from the front, those seen from the back.
#
#   NETWORK=X.pkl DATA=A.zip ./get_metrics.sh
#
# One JSON line per metric and mode; appended to metric-NAME.jsonl beside the network too. All of the following can be set in
# the environment.
set -euo pipefail

NETWORK=${NETWORK:-demo}              # network file, address or demo
DATA=${DATA:-}                        # images with dataset.json; left empty: synthetic heads are written and used
SEG=${SEG:-}                          # their masks, for metrics that use masks
METRICS=${METRICS:-frechet_seeded}    # names with commas between
NUM=${NUM:-2000}                      # generated images, and at most as many real ones
MODES=${MODES:-all front back}
BATCH=${BATCH:-16}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
OUTDIR=${OUTDIR:-metrics_out}         # for the synthetic heads
NUM_SYNTHETIC=${NUM_SYNTHETIC:-200}   # heads written where DATA is empty

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-$(ls "$HERE/.venv/bin/python" 2>/dev/null || echo python3)}
export PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}

if [ -z "$DATA" ]; then
    SIZE=$("$PYTHON" - "$NETWORK" <<'END'
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

for MODE in $MODES; do
    "$PYTHON" "$HERE/calc_metrics.py" --network "$NETWORK" --data "$DATA" ${SEG:+--seg "$SEG"} --metrics "$METRICS" --num "$NUM" \
        --mode "$MODE" --batch "$BATCH" --seed "$SEED" --device "$DEVICE"
done

#!/usr/bin/env bash
# Every picture of a folder or zip becomes a head (pivotal tuning inversion), and is filmed all the way round: with the
# network as it was (PTI_render/pre.mp4) and with the tuned one (PTI_render/post.mp4).
#
#   NETWORK=X.pkl TARGET_IMG=crops OUTDIR=pti_out ./gen_pti_script.sh
#
# An interrupted loop is taken up by the same command. Results: OUTDIR/<name of NETWORK>/<number of the picture>/. All of the following can be set in the environment.
set -euo pipefail

NETWORK=${NETWORK:-demo}              # network file, address or demo
TARGET_IMG=${TARGET_IMG:-}            # cropped pictures with dataset.json; left empty: synthetic heads are written and used
OUTDIR=${OUTDIR:-pti_out}
INDICES=${INDICES:-}                  # numbers of the pictures, such as "0 3 5"; left empty: all
RECIPE=${RECIPE:-omni}                # omni, or panohead or pso as published
STEPS=${STEPS:-}                      # looking for latents; left empty: the recipe's
STEPS_PTI=${STEPS_PTI:-$STEPS}        # tuning the generator; left empty: the recipe's
TARGET_SEG=${TARGET_SEG:-}            # masks of the pictures, where there are some
TARGET_IMG_BACK=${TARGET_IMG_BACK:-}  # for RECIPE=pso: pictures from behind in the same order; left empty: generated
PERCEPTUAL=${PERCEPTUAL:-}            # TorchScript VGG16 file or address; left empty: built-in distance
SEED=${SEED:-666}
FRAMES=${FRAMES:-240}                 # of each film
CFG=${CFG:-Head}                      # orbit of the films
DEVICE=${DEVICE:-auto}
NUM_SYNTHETIC=${NUM_SYNTHETIC:-2}     # heads written where TARGET_IMG is empty

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-$(ls "$HERE/.venv/bin/python" 2>/dev/null || echo python3)}
export PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}

if [ -z "$TARGET_IMG" ]; then
    TARGET_IMG=$OUTDIR/synthetic
    if [ ! -f "$TARGET_IMG/dataset.json" ]; then
        echo "TARGET_IMG is not set: writing $NUM_SYNTHETIC synthetic heads to $TARGET_IMG"
        "$PYTHON" "$HERE/dataset_tool_seg.py" --synthetic "$NUM_SYNTHETIC" --resolution 256x256 --img_dest "$TARGET_IMG"
    fi
fi
if [ -z "$INDICES" ]; then
    INDICES=$("$PYTHON" - "$TARGET_IMG" <<'END'
import sys
from dnnlib import UserError
from training.dataset_store import ImageStore
try:
    names = ImageStore(sys.argv[1]).names
    if not names:
        raise UserError(f'{sys.argv[1]}: holds no images; check the path')
    print(*range(len(names)))
except UserError as error:
    print(f'Error: TARGET_IMG {error}', file=sys.stderr)
    sys.exit(2)
END
    )
fi

MODEL=$(basename "${NETWORK%%\?*}")
MODEL=${MODEL%.*}
for IDX in $INDICES; do
    RESULT=$OUTDIR/$MODEL/$IDX
    "$PYTHON" "$HERE/projector.py" --network "$NETWORK" --target_img "$TARGET_IMG" --idx "$IDX" --outdir "$OUTDIR" \
        --recipe "$RECIPE" ${STEPS:+--num-steps "$STEPS"} ${STEPS_PTI:+--num-steps-pti "$STEPS_PTI"} --seed "$SEED" \
        --device "$DEVICE" --orbit-frames 0 ${PERCEPTUAL:+--perceptual "$PERCEPTUAL"} ${TARGET_SEG:+--target_seg "$TARGET_SEG"} \
        ${TARGET_IMG_BACK:+--target_img_back "$TARGET_IMG_BACK"}
    for WHICH in pre post; do
        FILM=$NETWORK
        if [ "$WHICH" = post ]; then FILM=$RESULT/fintuned_generator.pkl; fi
        "$PYTHON" "$HERE/gen_videos.py" --network "$FILM" --latent "$RESULT/projected_w.npz" --cfg "$CFG" --w-frames "$FRAMES" \
            --outdir "$RESULT/PTI_render" --device "$DEVICE" > /dev/null     # it would name the file by its first name
        mv "$RESULT/PTI_render/projected_w0000.mp4" "$RESULT/PTI_render/$WHICH.mp4"
        echo "$RESULT/PTI_render/$WHICH.mp4: $FRAMES frames"
    done
done

#!/bin/sh
# The picto models on a bare machine with a GPU and no network, as recipes/picto/GPU.md tells.
#   start      installs what was carried, and begins data and training in a session of their own: they go on between calls
#   again      begins them again, after one that failed; what is done is kept
#   wait N     at most N seconds until all is done; shows how far it is, and leaves what there is in $OUT
# Of use for trying it: WORK, a folder; PYTHON; BUILD, more flags of recipes.picto.build; TRAIN, all of recipes.picto.train;
# TRIAL, minutes of the trial.
set -eu
work=${WORK:-/tmp/picto} python=${PYTHON:-python3} out=${OUT:-$work/out}
train=${TRAIN:---size full --minutes 19 --together --num_workers 7}
export PYTHONPATH="$work/site:$work/code" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

case $1 in
start)
    mkdir -p "$work/cache/archives" "$work/code"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" .gpu/whl/*.whl
    cp .gpu/dl/*.tgz "$work/cache/archives/"
    cp -r dalle3 diffusion recipes "$work/code/" # the next call puts a new tree in the place of this one
    # The build wants an environment of its own. This one borrows all it has.
    "$python" -m venv --without-pip "$work/cache/venv"
    for packages in "$work"/cache/venv/lib/python3*/site-packages; do
        echo "$work/site" >"$packages/carried.pth"
        "$python" -c 'import numpy, pathlib; print(pathlib.Path(numpy.__file__).parent.parent)' >>"$packages/carried.pth"
    done
    touch "$work/cache/venv/.ok"
    sh "$0" again
    ;;
again)
    cd "$work/code"
    setsid nohup sh recipes/picto/on_gpu.sh go >"$work/log" 2>&1 </dev/null &
    echo $! >"$work/pid"
    ;;
go)
    mkdir -p "$work/no" && printf '#!/bin/sh\nexit 1\n' >"$work/no/apt-get" && chmod +x "$work/no/apt-get" # it would wait for a network
    build() {
        # shellcheck disable=SC2086 # flags
        PATH="$work/no:$PATH" "$work/cache/venv/bin/python" -m recipes.picto.build --cache "$work/cache" --size 256 \
            --fmt webp92 --jobs "$(nproc)" --txt all --out "$@" ${BUILD:-}
    }
    # While the data is drawn, a few minutes, the same trainings on little of it show that they run here, and how fast.
    [ -d "$work/little" ] || build "$work/little" --limit 1000
    # shellcheck disable=SC2086
    "$python" -m recipes.picto.train --data "$work/little" --out "$work/trial" $train --minutes "${TRIAL:-3}" >"$work/trial.log" 2>&1 &
    [ -d "$work/data" ] || build "$work/data"
    wait
    # shellcheck disable=SC2086
    "$python" -m recipes.picto.train --data "$work/data" --out "$work/runs" $train
    touch "$work/done"
    ;;
wait)
    mkdir -p "$out"
    end=$(($(date +%s) + $2))
    while [ "$(date +%s)" -lt "$end" ] && [ ! -e "$work/done" ] && kill -0 "$(cat "$work/pid")" 2>/dev/null; do sleep 2; done
    tail -n 25 "$work/log"
    for log in "$work"/trial.log "$work"/trial/*.log "$work"/runs/*.log; do
        [ ! -e "$log" ] || { echo "== $log" && tail -n 3 "$log" | cut -c1-300; }
    done
    cd "$work"
    if [ ! -e done ] && [ -d runs/codec-frozen ]; then # as far as it is, in case this machine is lost
        (cd code && "$python" -m recipes.picto.train --data ../data --out ../runs --only_pack $train) || true
    fi
    found=$(ls -d runs/model 2>/dev/null || for part in codec clip; do ls -d runs/$part/step-???????? 2>/dev/null | tail -n 1; done)
    # shellcheck disable=SC2086
    [ -z "$found" ] || tar c --exclude train $found | split -b 15m - "$out/picto.tar."
    # shellcheck disable=SC2046
    tar czf "$out/logs.tgz" log $(ls -d runs/*.log runs/*/metrics.jsonl runs/*/samples trial.log trial/*.log 2>/dev/null) || true
    ls -la "$out"
    ;;
esac

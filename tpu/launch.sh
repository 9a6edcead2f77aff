#!/usr/bin/env bash
# Start `jaxlm train` on every worker, in the background. Where it runs already, it is left alone; a run that stopped
# goes on from its last checkpoint.
#
#     tpu/launch.sh NAME --run RUN -- configs/quickstart.py --mesh fsdp=-1 --steps 10000
#
#     --run       name of the run: its folder under ~/runs, its log ~/logs/RUN.log
#     --zone, --project; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
run=''
parse 'run' '' "$@"
at
word run "$run"
[ "${#rest[@]}" -gt 0 ] || die "expected -- CONFIG [flags of jaxlm train]"
log=\$HOME/$LOGS/$run
everywhere 300 "cd $CODE && mkdir -p \$HOME/$LOGS || exit 1
if kill -0 \$(cat $log.pid 2>/dev/null) 2>/dev/null; then echo $run: runs already; exit 0; fi
rm -f $log.status
nohup sh -c '.venv/bin/jaxlm train \"\$@\"; echo \$? > $log.status' train $(quoted "${rest[@]}")--run-dir \$HOME/$RUNS/$run >> $log.log 2>&1 < /dev/null &
echo \$! > $log.pid"
say "$name: $run is started; next: tpu/logs.sh $name --run $run"

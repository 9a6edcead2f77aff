#!/usr/bin/env bash
# Follow the log of a run on one worker.
#
#     tpu/logs.sh NAME --run RUN
#
#     --worker    default 0, which tells the progress; the others tell their errors
#     --slice     of a pod of several; default 0
#     --lines     to begin with; default 50
#     --no-follow: only these; --zone, --project; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
run='' worker=0 slice=0 lines=50 no_follow=''
parse 'run worker slice lines' 'no-follow' "$@"
at
word run "$run"
[[ $worker$slice$lines =~ ^[0-9]+$ ]] || die "--worker, --slice and --lines: expected numbers"
node=$(nodes | sed -n "$((slice + 1))p")
[ -n "$node" ] || die "--slice = $slice: expected less than ${slices:-1}"
follow=-F
[ -z "$no_follow" ] || follow=''
cloud "${FOLLOW:-864000}" compute tpus tpu-vm ssh "$node" "${place[@]}" --worker "$worker" \
    --command "tail -n $lines $follow $LOGS/$run.log"

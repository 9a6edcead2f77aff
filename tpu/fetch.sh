#!/usr/bin/env bash
# Bring a run's folder here: from the bucket, or else from the first worker. Again: what is new.
#
#     tpu/fetch.sh NAME --run RUN
#
#     --to        folder that will hold RUN; default: runs
#     --bucket, --zone, --project; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
run='' to=runs
parse 'run to bucket' '' "$@"
word run "$run"
[ -n "$dry_run" ] || mkdir -p "$to/$run"
if [ -n "$bucket" ]; then
    cloud 7200 storage rsync --recursive "$bucket/$run" "$to/$run"
else
    at
    cloud 7200 compute tpus tpu-vm scp --recurse "$(nodes | head -n 1):$RUNS/$run" "$to" "${place[@]}" --worker 0
fi
say "$to/$run"

#!/usr/bin/env bash
# Give a pod back. One that is gone already is well. Runs in a bucket stay; those on its disks go with it.
#
#     tpu/delete.sh NAME
#
#     --zone, --project; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
parse '' '' "$@"
at
now=ACTIVE
[ -n "$dry_run" ] || now=$(state)
if [ "$now" = NONE ]; then
    say "$name: is gone"
else
    cloud 1800 compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
fi
[ -n "$dry_run" ] || rm -f "$PODS/$name"

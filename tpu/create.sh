#!/usr/bin/env bash
# Ask for a pod, and wait until it is there. Asking twice changes nothing.
#
#     tpu/create.sh NAME --zone us-west4-a --type v5litepod-16 --spot --bucket gs://my-runs
#
#     --type      accelerator: v4-32, v5litepod-16, v5p-128, v6e-256, ...
#     --slices    slices of that type, joined by the data-centre network; default 1
#     --spot      cheaper, and may be taken away: see resume.sh
#     --bucket    where runs lie; default: on the first worker's disk, which goes with it
#     --version   software of the machines; default: what the type needs
#     --zone, --project; --no-wait: only ask; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
no_wait=''
parse 'type slices version bucket' 'spot no-wait' "$@"
at
slices=${slices:-1}
[ -n "$type" ] || die '--type: expected an accelerator type, for example v5litepod-16'
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices = '$slices': expected a positive number"
[[ -z $bucket || $bucket == gs://* ]] || die "--bucket = '$bucket': expected gs://NAME"
if [ -z "$version" ]; then
    case $type in
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-* | v3-* | v2-*) version=tpu-ubuntu2204-base ;;
    *) die "--type = '$type': expected v4-N, v5litepod-N, v5p-N or v6e-N; another one needs --version" ;;
    esac
fi

now=NONE
[ -n "$dry_run" ] || now=$(state)
case $now in
NONE)
    remember
    who=(--node-id "$name")
    [ "$slices" = 1 ] || who=(--node-prefix "$name" --node-count "$slices")
    [ -z "$spot" ] || who+=(--spot)
    cloud 600 compute tpus queued-resources create "$name" "${place[@]}" "${who[@]}" \
        --accelerator-type "$type" --runtime-version "$version" --quiet
    ;;
UNKNOWN) die "$name: gcloud does not say whether it exists; try again" ;;
FAILED | SUSPEND*) die "$name: $now; expected none: tpu/delete.sh $name, then again" ;;
*) say "$name: is there already, $now" ;;
esac

[ -z "$dry_run$no_wait" ] || exit 0
before=''
until now=$(state) && [ "$now" = ACTIVE ]; do
    [ "$now" = "$before" ] || say "$name: $now"
    before=$now
    case $now in FAILED | SUSPEND* | NONE) die "$name: $now instead of ACTIVE: tpu/delete.sh $name, then again" ;; esac
    sleep "${PAUSE:-30}"
done
say "$name: ACTIVE; next: tpu/setup.sh $name"

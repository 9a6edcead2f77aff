#!/usr/bin/env bash
# Bring the code of this checkout (what is committed) to every worker and install it there. Again: only if it changed.
#
#     tpu/setup.sh NAME
#
#     --bucket    gs://NAME, shown on every worker as ~/runs; default: what create.sh was told
#     --extra     of the package: tpu (default), cuda, ...
#     --zone, --project; --dry-run: only show

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
extra=tpu
parse 'bucket extra' '' "$@"
at
word extra "$extra"
cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD)
stamp="$commit-$extra"

if [ -z "$dry_run" ] && everywhere 300 "grep -qx $stamp $CODE/.installed 2>/dev/null" 2>/dev/null; then
    say "$name: has $commit already"
else
    archive=$(mktemp -d)
    trap 'rm -rf "$archive"' EXIT
    git archive --format tar.gz -o "$archive/jaxlm.tar.gz" HEAD
    for node in $(nodes); do
        cloud 900 compute tpus tpu-vm scp "$archive/jaxlm.tar.gz" "$node:jaxlm.tar.gz" "${place[@]}" --worker all
    done
    everywhere 1800 "set -e; mkdir -p $CODE $LOGS $RUNS; rm -f $CODE/.installed; tar -xzf jaxlm.tar.gz -C $CODE; cd $CODE
python3 -m venv .venv 2>/dev/null || { sudo apt-get -qq update; sudo apt-get -qq install -y python3-venv; python3 -m venv .venv; }
.venv/bin/pip install -q --upgrade pip; .venv/bin/pip install -q '.[$extra]'; echo $stamp > .installed"
fi

if [ -n "$bucket" ]; then
    # Orbax renames a finished checkpoint into its place, so folders must be renamable.
    everywhere 900 "set -e; mountpoint -q $RUNS && exit 0; mkdir -p $RUNS; command -v gcsfuse >/dev/null || {
echo deb [trusted=yes] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
sudo apt-get -qq update; sudo apt-get -qq install -y gcsfuse; }
gcsfuse --implicit-dirs --rename-dir-limit 100000 $(quoted "${bucket#gs://}")$RUNS"
fi
say "$name: ready; next: tpu/launch.sh $name --run first -- configs/quickstart.py --mesh fsdp=-1"

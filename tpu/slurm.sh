#!/usr/bin/env bash
# jaxlm train on all GPUs of a SLURM job, put back into the queue when it is taken away.
#
#     sbatch --nodes 2 --gpus-per-node 8 tpu/slurm.sh CONFIG --mesh fsdp=-1 --run-dir /shared/runs/first [flags]

#SBATCH --job-name=jaxlm
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

set -euo pipefail
case " $* " in
*" --run-dir "* | *" --run-dir="*) ;;
*) echo 'slurm.sh: error: expected --run-dir on a shared disk, so that the run can go on' >&2; exit 2 ;;
esac

status=0
srun --kill-on-bad-exit=1 jaxlm train "$@" || status=$?
if [ "$status" = 143 ]; then # stopped by SIGTERM, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/bin/bash
# One instance per array task: sbatch --array=0-6 --mem=… jobs/train.sh RUN [OPTION...]   (plan prints the line)
# OPTIONs are those of train-instance. METABATCH_FIRST_INSTANCE is added to the task number: a site may limit that.
#SBATCH --job-name=metabatch-train
#SBATCH --output=metabatch-train-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --cpus-per-task=2
set -u
[ $# -ge 1 ] || { echo "usage: sbatch --array=0-N jobs/train.sh RUN" >&2; exit 2; }
# Slurm runs a copy of this script: the checkout is where the original lies.
script=$([ -z "${SLURM_JOB_ID:-}" ] || scontrol show job "$SLURM_JOB_ID" 2>/dev/null |
  sed -n 's,^ *Command=\(.*/jobs/train\.sh\).*,\1,p' | head -n 1)
script=${script:-${SLURM_SUBMIT_DIR:-$PWD}/jobs/train.sh}
export METABATCH_HOME=${METABATCH_HOME:-$(dirname "$(dirname "$script")")}
. "$METABATCH_HOME/jobs/common.sh"
run=$1
shift
run_stage train-instance "$run" "$((${METABATCH_FIRST_INSTANCE:-0} + ${SLURM_ARRAY_TASK_ID:?submit with --array}))" "$@"

#!/bin/bash
# Honest evaluation and report: sbatch jobs/evaluate.sh RUN [OPTION...]
#SBATCH --job-name=metabatch-evaluate
#SBATCH --output=metabatch-evaluate-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --cpus-per-task=2
set -u
[ $# -ge 1 ] || { echo "usage: sbatch jobs/evaluate.sh RUN" >&2; exit 2; }
# Slurm runs a copy of this script: the checkout is where the original lies.
script=$([ -z "${SLURM_JOB_ID:-}" ] || scontrol show job "$SLURM_JOB_ID" 2>/dev/null |
  sed -n 's,^ *Command=\(.*/jobs/evaluate\.sh\).*,\1,p' | head -n 1)
script=${script:-${SLURM_SUBMIT_DIR:-$PWD}/jobs/evaluate.sh}
export METABATCH_HOME=${METABATCH_HOME:-$(dirname "$(dirname "$script")")}
. "$METABATCH_HOME/jobs/common.sh"
run_stage evaluate "$@"

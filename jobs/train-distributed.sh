#!/bin/bash
# One model over several workers: sbatch --array=0 --ntasks=K --mem-per-cpu=… jobs/train-distributed.sh RUN [OPTION...]
# (plan prints the line). Every task of the job is a worker, wherever Slurm puts it; Dask's scheduler and the process that
# leads run beside the first one. They listen on loopback when the job has one node, else on each node's address: the
# first one, or that of the network interface named in METABATCH_INTERFACE.
#SBATCH --job-name=metabatch-train
#SBATCH --output=metabatch-train-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --cpus-per-task=2
set -u
[ $# -ge 1 ] || { echo "usage: sbatch --array=0 --ntasks=K jobs/train-distributed.sh RUN" >&2; exit 2; }
# Slurm runs a copy of this script: the checkout is where the original lies.
script=$([ -z "${SLURM_JOB_ID:-}" ] || scontrol show job "$SLURM_JOB_ID" 2>/dev/null |
  sed -n 's,^ *Command=\(.*/jobs/train-distributed\.sh\).*,\1,p' | head -n 1)
script=${script:-${SLURM_SUBMIT_DIR:-$PWD}/jobs/train-distributed.sh}
export METABATCH_HOME=${METABATCH_HOME:-$(dirname "$(dirname "$script")")}
. "$METABATCH_HOME/jobs/common.sh"
trap 'back_into_the_queue; exit 75' TERM USR1 # until the stage runs, which takes over
run=$1
shift
if [ -n "${METABATCH_INTERFACE:-}" ]; then
  listen="--interface $METABATCH_INTERFACE"
elif [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
  listen='--host $(hostname -I | cut -d " " -f 1)' # of the node where it is read
else
  listen="--host 127.0.0.1"
fi
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="60 s" # a worker that was not heard of for so long is lost
mkdir -p "$run/logs" || exit 3
file=$run/logs/dask-${SLURM_JOB_ID:?to be submitted with sbatch}.json
export METABATCH_DASK_FILE=$file # read by the shells below, which Slurm gives this environment: a path may hold any sign
rm -f "$file"
command=("$METABATCH_HOME/bin/_run")
[ -z "${METABATCH_IMAGE:-}" ] || image_command "$run" _run
dask="exec $(printf '%q ' "${command[@]}")distributed.cli"
bash -c "$dask.dask_scheduler --port 0 --no-dashboard --no-jupyter $listen --scheduler-file \"\$METABATCH_DASK_FILE\"" &
scheduler=$!
# Overlapping steps share what the job has; a worker that is lost must not end the others before they could say so.
srun --overlap --ntasks="${SLURM_NTASKS:-1}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 bash -c \
  "$dask.dask_worker --scheduler-file \"\$METABATCH_DASK_FILE\" --nthreads 1 --no-nanny --no-dashboard --memory-limit 0 \
  --death-timeout 60 --local-directory \"\${TMPDIR:-/tmp}\" $listen" &
workers=$!
trap 'kill $workers $scheduler 2>/dev/null; rm -f "$file"' EXIT
for _ in $(seq 60); do
  [ -s "$file" ] && break
  sleep 1
done
run_stage train-instance "$run" "${SLURM_ARRAY_TASK_ID:-0}" --dask-scheduler "$file" "$@"

# Shared by the sbatch scripts: run a stage so that signals, requeues and containers behave.
#
# run_stage EXECUTABLE ARGUMENT...
#   natively from this checkout, or from the Apptainer image named in METABATCH_IMAGE. The stage runs as a
#   child, because Slurm's TERM and USR1 reach only this shell: they are passed on. Exit code 75 ("interrupted,
#   run me again") puts the job back into the queue.
run_stage() {
  local stage=$1 child code job
  shift
  echo "metabatch: $stage $* on $(hostname), job ${SLURM_JOB_ID:-none}, task ${SLURM_ARRAY_TASK_ID:-none}," \
    "restart ${SLURM_RESTART_COUNT:-0}, $(date -u +%FT%TZ)"
  if [ -n "${METABATCH_IMAGE:-}" ]; then
    apptainer exec --bind "${METABATCH_BIND:-$PWD}" "$METABATCH_IMAGE" "$stage" "$@" &
  else
    "$METABATCH_HOME/bin/$stage" "$@" &
  fi
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM USR1 INT
  while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # a trapped signal ends wait before the child does
  done
  trap - TERM USR1 INT
  if [ "$code" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "metabatch: interrupted, back into the queue: $job"
    scontrol requeue "$job"
  fi
  exit "$code"
}

# Shared by the sbatch scripts: run a stage so that signals, requeues, kills for memory and containers behave.
#
# run_stage EXECUTABLE RUN ARGUMENT...
#   natively from this checkout, or from the Apptainer image named in METABATCH_IMAGE. Inside a job the stage is a step
#   of its own (srun): Slurm then accounts for it, and when the kernel killed a part of it and the stage went on more
#   cheaply, the job still ends as completed, so that what depends on it starts. Slurm's TERM before the time limit and
#   USR1 reach only this shell: they are passed on. Exit code 75 ("interrupted, run me again") puts the job back into the
#   queue, unless somebody cancelled it; so does 5 ("owned by another") in a job that Slurm started again, later. A job
#   started again goes on: --force counts for its first start only.
run_stage() {
  local stage=$1 child code pass_on=TERM word words=()
  shift
  for word in "$@"; do
    [ "$word" = --force ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || words+=("$word")
  done
  set -- "${words[@]}"
  echo "metabatch: $stage $* on ${SLURMD_NODENAME:-$(hostname)}, job ${SLURM_JOB_ID:-none}," \
    "task ${SLURM_ARRAY_TASK_ID:-none}, restart ${SLURM_RESTART_COUNT:-0}, $(date -u +%FT%TZ)"
  local command=("$METABATCH_HOME/bin/$stage" "$@")
  if [ -n "${METABATCH_IMAGE:-}" ]; then
    image_command "$1" "$stage" "$@"
  fi
  if [ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; then
    # srun does not take over --cpus-per-task of the job by itself.
    command=(srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --unbuffered "${command[@]}")
    pass_on=USR1 # TERM would make srun kill the step; the stage takes both for the same
  fi
  "${command[@]}" &
  child=$!
  trap 'kill -$pass_on "$child" 2>/dev/null' TERM USR1 INT
  while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # a trapped signal ends wait before the child does
  done
  trap - TERM USR1 INT
  echo "metabatch: $stage ended with exit code $code, $(date -u +%FT%TZ)"
  case $code in
    75 | 138 | 143) back_into_the_queue ;; # 138, 143: USR1 or TERM came while Python was starting
    5) [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || back_into_the_queue 120 ;; # cut off from its node, it may still be at work
  esac
  exit "$code"
}

# image_command RUN WORD...: sets `command` to the words inside the image. The image is read-only; the run, its data set
# (with the folders its shards really lie in), the working directory and the scratch folder are bound, METABATCH_BIND adds
# to them. SLURM_*, DASK_* and TMPDIR are passed on also where the site cleans the environment of containers.
image_command() {
  local run=$1 name place binds=() data
  shift
  data=$(sed -n 's/^ *"path": "\(.*\)",$/\1/p' "$run/plan.json" 2>/dev/null | head -n 1)
  while IFS= read -r place; do
    case $place in
      *[,:\"]*) echo "metabatch: $place cannot be bound into the image (comma, colon or quote in its name)" >&2 ;;
      ?*) [ ! -e "$place" ] || binds+=(--bind "$place") ;;
    esac
  done <<PLACES
$PWD
$(readlink -f -- "$run")
$data
$(find -H "$data" -name '*.parquet' -type l -exec readlink -f {} + 2>/dev/null | sed 's,/[^/]*$,,' | sort -u)
${TMPDIR:-}
${SLURM_TMPDIR:-}
PLACES
  for name in $(compgen -e | grep -E '^(SLURM_|SLURMD_|DASK_|TMPDIR$)'); do
    export "APPTAINERENV_$name=${!name}"
  done
  [ -z "${METABATCH_BIND:-}" ] || binds+=(--bind "$METABATCH_BIND")
  [ -z "${SLURM_JOB_GPUS:-}${SLURM_STEP_GPUS:-}" ] || binds+=(--nv) # the driver of the node's GPU
  command=(apptainer exec --pwd "$PWD" "${binds[@]}" "$METABATCH_IMAGE" "$@")
}

# back_into_the_queue [SECONDS]: not to start again before that
back_into_the_queue() {
  local job=${SLURM_JOB_ID:-} state
  [ -n "$job" ] || return 0
  # Of one task of an array: the number of the array's last task is that of the whole array.
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  state=$(scontrol --oneliner show job "$job" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  if [ "$state" = RUNNING ]; then
    echo "metabatch: back into the queue: $job"
    trap '' TERM # requeueing ends this shell: not before it has said when to start again
    scontrol requeue "$job"
    [ -z "${1:-}" ] || scontrol update JobId="$job" StartTime="now+$1"
  else # cancelled by somebody, or requeued by Slurm itself
    echo "metabatch: job $job is $state: nothing more is done"
  fi
}

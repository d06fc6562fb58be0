#!/usr/bin/env bash
# A cross-validation spread over a SLURM cluster: every task of the array trains folds of one run until none is left.
#
#   mkdir -p logs
#   sbatch --export=ALL,DATA=/shared/covid_ct,RUN=/shared/runs/table1 examples/slurm/crossval_array.sh --table1
#
# DATA and RUN are folders that all nodes see. What follows the script's name are options of `asegnet-fast crossval`,
# the same for every task. The number of tasks is yours to choose, up to rows times folds (70 for --table1): a task
# takes the next free fold until there is none. The last one to finish a fold writes the table and the pictures. More
# tasks can join at any time: sbatch it again.
#
# A task that is preempted or runs out of time gives its fold back, is queued again and goes on from the checkpoint.
# A task whose node dies is missed after --stale-seconds (three minutes); its fold goes to the next task that is free,
# one of these or one that you submit again.
#
#SBATCH --job-name=asegnet-crossval
#SBATCH --array=0-9
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=logs/%x-%A_%a.log
#SBATCH --open-mode=append
# SIGTERM two minutes before the time is up; the program then stops at once, and what it has is in its checkpoint.
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
: "${DATA:?the folder with the CT data, seen by all nodes}" "${RUN:?the folder of the run, seen by all nodes}"

# Activate here the environment in which asegnet-fast is installed, e.g.:
#   source "$HOME/asegnet/bin/activate"

# As many threads as cores were given; without this each task would take the whole node's.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# --resume continues the run, or joins the tasks that are at it, or begins it: one command for all of them.
# --no-wait ends a task that has nothing to do, instead of keeping a GPU in case another task dies.
# --cache keeps the decoded slices, so that only the first task reads the volumes.
status=0
srun asegnet-fast crossval --data "$DATA" --out "$RUN" --cache "$RUN.cache" --resume --no-wait "$@" || status=$?

# 143: stopped by SIGTERM. Queue this task again; it goes on where it stopped.
if [ "$status" -eq 143 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"

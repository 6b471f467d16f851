#!/bin/bash
#SBATCH --job-name=kdrun --array=0-4 --cpus-per-task=4 --gres=gpu:1
#SBATCH --time=240 --signal=USR2@120 --requeue --open-mode=append
# One run for each index of the array, which is its seed. What it needs (a teacher) is made by the first that comes.
#   sbatch --array=0-19 --gres=none scripts/slurm/by_index.sh experiment=demo loss=kd
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" kdrun train "$@" seed="$SLURM_ARRAY_TASK_ID"
code=$?
# 128 + n: stopped by signal n, but for INT and TERM (scancel); 75: another process holds it
case $code in 75 | 138 | 140) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;; esac
exit $code

#!/bin/bash
#SBATCH --job-name=kdrun --array=0-7 --cpus-per-task=4 --gres=gpu:1
#SBATCH --time=240 --signal=USR2@120 --requeue --open-mode=append
# Eight copies of one command are a pool: each takes what nobody holds. What is given here goes to each, and to sbatch
# what stands before the script:
#   sbatch --partition=main --gres=none scripts/slurm/pool.sh experiment=demo loss=ce,kd seed='range(20)'
# Two minutes before its time is up (USR2) a copy writes checkpoints, is submitted again, and goes on from them.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" kdrun sweep "$@"
code=$?
# 128 + n: stopped by signal n, but for INT and TERM (scancel); 75: another process holds it
case $code in 75 | 138 | 140) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;; esac
exit $code

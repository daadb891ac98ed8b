#!/bin/bash
# Submits a detection in shards, and what merges them when all are done.
#
#     scripts/slurm/submit.sh 64 zh.scores.safetensors --model M --corpus zh.jsonl --language zh
#
# Options of sbatch (partition, account, time, …) come from its environment: SBATCH_PARTITION, SBATCH_ACCOUNT,
# SBATCH_TIMELIMIT. Shards cost one load of the model each: let each compute for some minutes at least.

set -eu
shards=${1:?how many shards}
output=${2:?the scores artifact to write, then the options of plnd detect}
here=$(cd "$(dirname "$0")" && pwd)
shift

array=$(sbatch --parsable --array="1-$shards" "$here/detect.sbatch" "$@")
merge=$(sbatch --parsable --dependency="afterok:${array%%;*}" "$here/merge.sbatch" "$output" "$shards")
echo "array $array, merge $merge"

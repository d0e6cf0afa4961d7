#!/usr/bin/env bash
# lock.sh - locks between jobs that also hold on a network file system, where flock may not.
#
# A lock is a folder; who holds it made the highest number in it, since making a folder is atomic.
# The next one may do so when that number is free, or when its holder is dead: Slurm no longer runs
# the job, or nothing was heard of it for VQ_DEAD_S. Nothing is ever renamed or removed, so two who
# both find a holder dead cannot both win.

# Takes a lock for this job ($vq_job); its place is in $lock_place. Fails while another has it.
lock_take() { # LOCK
    local last
    mkdir -p "$1"
    last=$(find "$1" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -1)
    [ -z "$last" ] || lock_is_free "$1/$last" || return 1
    mkdir "$1/$((${last:-0} + 1))" 2>/dev/null || return 1
    lock_place=$1/$((${last:-0} + 1))
    echo "$vq_job" >"$lock_place/job"
    lock_beat "$lock_place"
}

lock_beat() { # PLACE
    touch "$1/beat"
}

lock_free() { # PLACE
    touch "$1/free"
}

# The age is taken between two times of the file server: nodes' clocks differ.
lock_is_free() { # PLACE
    local job age
    [ -e "$1/free" ] && return 0
    job=$(cat "$1/job" 2>/dev/null)
    [ "$job" = "$vq_job" ] && return 0
    [ -n "$job" ] && lock_job_is_gone "$job" && return 0
    touch "$1/now.$vq_job"
    age=$(($(stat -c %Y "$1/now.$vq_job") - $(stat -c %Y "$1/beat" 2>/dev/null || stat -c %Y "$1")))
    rm -f "$1/now.$vq_job"
    [ "$age" -gt "$VQ_DEAD_S" ]
}

# Whether Slurm knows that a job does not run; where Slurm cannot be asked nothing is known.
lock_job_is_gone() { # JOB
    local said
    if said=$(squeue --noheader --states=RUNNING,SUSPENDED,STOPPED,COMPLETING --jobs="$1" 2>&1); then
        [ -z "$said" ]
    else
        [[ $said == *"Invalid job id"* ]]
    fi
}

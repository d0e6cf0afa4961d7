#!/usr/bin/env bash
# share.sh - what rows of a sweep have in common is made by one of them: tokens and teacher states.
#
# vqround skips a phase whose file is in the run folder and carries the right key. So the first row
# of those that agree puts its files, once they are whole, into OUT/shared/KEY/files, and the others
# begin with links to them.

# Options on which neither depends. One that is not named here makes rows differ.
share_is_other() { # OPTION
    [[ $1 =~ ^--(bits|group_size|sym|init|skip|D|K|steps|lr|batch-size|stages|replicas|slices|threads)$ ||
        $1 =~ ^--(grid|gptq|kmeans|checkpoint)\. ||
        $1 =~ ^--train\.(steps|lr|batch|kd_temperature|kd_alpha|round_weight|beta_hi|beta_lo|beta_hold|recompute)$ ]]
}

# A name for what a row shares.
share_key() { # OPTIONS...
    while [ $# -gt 1 ]; do
        share_is_other "$1" || printf '%s\n' "$1" "$2"
        shift 2
    done | sha256sum | cut -c 1-16
}

share_link() { # FROM TO
    ln -f "$1" "$2" 2>/dev/null || { cp "$1" "$2.tmp" && mv "$2.tmp" "$2"; }
}

# Links what others made into a run folder that does not have it yet.
share_get() { # SHARED RUN
    local file
    for file in "$1"/files/*; do
        [ -e "$2/${file##*/}" ] || share_link "$file" "$2/${file##*/}"
    done
}

# Offers a run's files to the others. Once training has begun, or the run has ended, all are whole.
share_put() { # SHARED RUN
    local file new=$1/new.$vq_job
    [ -e "$2/metrics.jsonl" ] || [ -e "$2/results.json" ] || return 1
    rm -rf "$new"
    mkdir "$new"
    for file in "$2"/tokens.h5 "$2"/teacher-*.h5; do
        [ ! -e "$file" ] || share_link "$file" "$new/${file##*/}"
    done
    mv -T "$new" "$1/files" 2>/dev/null || rm -rf "$new" # another was first
}

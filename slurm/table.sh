#!/usr/bin/env bash
# table.sh - a sweep's table, and which of its rows are done; sourced by the sweep's scripts.
#
# A table is a .tsv: a line of keys of `vqround quantize` (or their short forms), then a row of
# values for each run; "-" leaves a key at its default, "#" starts a comment line. The run's folder
# is OUT/NAME: NAME is the row's value under "name", or is made of the row's other values but paths.

# The table as lines "ROW NAME --KEY VALUE ...", tab-separated; ROW counts from 1.
table_read() { # TABLE
    [ -r "$1" ] || {
        echo "table.sh: error: $1 cannot be read: expected a table of runs. Check its path" >&2
        return 3
    }
    awk -F '\t' -v OFS='\t' -v table="$1" '
    function fail(text) {
        print "table.sh: error: " table (NR ? ":" NR : "") ": " text > "/dev/stderr"
        failed = 1
        exit 3
    }
    function base(path) {
        sub(/\/+$/, "", path)
        sub(/.*\//, "", path)
        return path
    }
    { sub(/\r$/, "") }
    /^#/ || /^[ ]*$/ { next }
    !n {
        n = split($0, key, "\t")
        for (i = 1; i <= n; i++) {
            if (key[i] ~ /^-/)
                fail("column " i " is called \"" key[i] "\": expected a key without dashes before it. Remove them")
            if (key[i] in place)
                fail("columns " place[key[i]] " and " i " are both called \"" key[i] "\": expected a key once. Remove one")
            place[key[i]] = i
            if (key[i] !~ /^[A-Za-z_.-]+$/)
                fail("column " i " is called \"" key[i] "\": expected a key of \"vqround quantize --help\". Check that tabs, not spaces, stand between the columns")
            if (key[i] == "out")
                fail("column \"out\": expected none, since every row has its own folder. Call the column \"name\"")
        }
        next
    }
    {
        if (NF != n)
            fail(NF " of " n " columns: expected as many as the first line has. Write - for a default, and tabs between the columns")
        name = options = ""
        for (i = 1; i <= n; i++) {
            if ($i == "" || $i == "-") continue
            if (key[i] == "name") {
                name = $i
                break
            }
            name = name (key[i] == "model" ? "-" base($i) : $i ~ /\// ? "" : "-" key[i] $i)
        }
        sub(/^-/, "", name)
        for (i = 1; i <= n; i++)
            if (key[i] != "name" && $i != "" && $i != "-") options = options OFS "--" key[i] OFS $i
        if (name !~ /^[A-Za-z0-9][A-Za-z0-9_.=,+-]*$/)
            fail("the row is called \"" name "\": expected letters, digits and - _ . only. Add a column \"name\"")
        if (name in line)
            fail("the row is called " name ", as line " line[name] ": expected another name. Add a column \"name\"")
        line[name] = NR
        print ++rows, name options
    }
    END {
        if (!failed && !rows)
            fail("no rows: expected a line of keys and one line or more of values. Add them")
    }' "$1"
}

# Whether a program has the keys of rows, as table_read gives them, and the config files are there: what
# is wrong in all rows is said before they are queued. A wrong value is its row's to say.
table_check() { # TABLE ROWS PROGRAM
    local key said config
    for key in $(cut -f 3- <<<"$2" | tr '\t' '\n' | grep '^--' | sort -u); do
        said=$("$3" quantize "$key=" --help 2>&1) || true
        [[ $said == *"there is no such flag"* || $said == *"of other subcommands"* ]] || continue
        echo "table.sh: error: $1: ${said#vqround: error: }" >&2
        return 2
    done
    while IFS= read -r config; do
        [ -z "$config" ] || [ -r "$config" ] || {
            echo "table.sh: error: $1: config $config cannot be read: expected a file. Check its path, which starts at $PWD" >&2
            return 3
        }
    done < <(awk -F '\t' '{ for (i = 3; i < NF; i++) if ($i == "--config") print $(i + 1) }' <<<"$2" | sort -u)
}

# Whether a row, as table_read gives it, was finished with these very settings: once a run has
# ended well they are kept beside its results.
table_is_done() { # OUT LINE
    local name
    name=$(cut -f 2 <<<"$2")
    [ -e "$1/$name/results.json" ] && [ "$(cat "$1/$name/row.done" 2>/dev/null)" = "$(cut -f 3- <<<"$2")" ]
}

# The value of a key in a row, as table_read gives it: its own, or that of its config file, where a
# key on the top level is a line of its own.
table_value() { # LINE KEY
    local value config
    value=$(tr '\t' '\n' <<<"$1" | awk -v flag="--$2" 'found { print; exit } $0 == flag { found = 1 }')
    if [ -z "$value" ] && [ "$2" != config ]; then
        config=$(table_value "$1" config)
        [ ! -r "$config" ] || value=$(sed -n "s/^$2:[[:space:]]*\\([^[:space:]#]*\\).*/\\1/p" "$config")
    fi
    echo "$value"
}

# A copy in OUT, which rows that wait in the queue read: the table may be changed meanwhile.
table_keep() { # TABLE OUT
    local copy
    copy=$2/table-$(cksum <"$1" | cut -d ' ' -f 1).tsv
    mkdir -p "$2" && cp "$1" "$copy" && echo "$copy"
}

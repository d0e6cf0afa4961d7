#!/bin/sh
# ptxas_log.sh NVCC ARGUMENTS... - compiles with -Xptxas -v among the arguments: what ptxas says of
# registers is kept beside the object, in OBJECT.ptxas (tests/check_spills.sh); all else is said.
object= last=
for argument; do
    [ "$last" = -o ] && object=$argument
    last=$argument
done
"$@" 2>"$object.said"
code=$?
about='^ptxas info|bytes stack frame'
grep -E "$about" "$object.said" >"$object.ptxas"
grep -Ev "$about" "$object.said" >&2
rm -f "$object.said"
exit $code

#!/bin/bash
# A stand-in for the old rocprof: its options end at the first other word, and it puts its command together as the real
# script does, by quoting each word with double quotes and having a shell read that again.
out="" stats=0
while [[ "$1" == -* ]]; do
  case "$1" in
    -o) out="$2"; shift ;;
    --stats) stats=1 ;;
    *) echo "Wrong option '$1'"; exit 1 ;;
  esac
  shift
done
run() {
  shift
  line="$* 2>&1 | cat"
  eval "$line"
}
command=""
for word in "$@"; do
  command="$command${command:+ }\"$word\""
done
# No quotes: as there.
run input $command
echo "Name,Calls" >"$out"
[ $stats = 1 ] && echo "Name,Calls" >"${out%.csv}.stats.csv"
exit 0

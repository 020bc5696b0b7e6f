#!/usr/bin/env bash
# Runs the tests of the tier 'gpu' on a machine with a GPU that has no network, and nothing but Python 3.12 with torch,
# transformers, accelerate, nvidia-ml-py and pytest. What they need beside these is packed here, as wheels, in .gpu_check.
#
#   tools/gpu_check.sh [ARGS]            packs and runs here; ARGS are further ones of pytest, such as -k life
#   tools/gpu_check.sh ssh HOST [ARGS]   packs, runs on HOST, and brings the results back
#   tools/gpu_check.sh pack              packs only: then take this tree, with .gpu_check, to the machine, and there
#   tools/gpu_check.sh run [ARGS]        runs only
#
# The results are in $OUT (gpu_check_results): figures.txt, junit.xml, run.json, report.html, output.txt, logs.tar.gz.
# PYTHON: the interpreter (python3; on the GPU's machine the one with torch). PACK_FOR: the version of Python there (3.12).
# LIMIT: seconds that the tests may take (520); what is done by then has its results.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packed=$PWD/.gpu_check
extras="gpu,profile,xdist"
serving=(openai pydantic uvicorn fastapi starlette rich)  # what transformers[serving] names beside torch

pack() {
  local platforms=() glibc wheels=$packed/wheels
  rm -rf "$packed"
  mkdir "$packed"
  for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
  "$python" -m pip download --quiet --dest "$wheels" --only-binary=:all: --implementation cp \
    --python-version "${PACK_FOR:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 \
    pip "$(echo "$wheels"/pytest_infserver-*.whl)[$extras]" "${serving[@]}"
  local size
  size=$(du -sm "$packed" | cut -f 1)
  echo "gpu_check: $(find "$wheels" -name '*.whl' | wc -l) wheels, $size MB, in $packed"
  [ "$size" -lt 64 ] || { echo "gpu_check: more than 64 MB" >&2; return 1; }
}

environment() {  # FOLDER: what the machine has stays in sight; what it lacks, or has too old, is installed before it
  local wheels=$packed/wheels
  [ -d "$wheels" ] || { echo "gpu_check: there is no $wheels: run 'tools/gpu_check.sh pack' where there is a network" >&2; return 1; }
  "$python" -m venv --without-pip "$1"
  "$python" -c 'import sys; [print(f"import site; site.addsitedir({p!r})") for p in sys.path if p.endswith("-packages")]' \
    >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
  "$1/bin/python" "$(echo "$wheels"/pip-*.whl)/pip" install --quiet --no-index --find-links "$wheels" \
    "$(echo "$wheels"/pytest_infserver-*.whl)[$extras]" "${serving[@]}"
  # Commands of what was there before run with the interpreter that sees the rest, too.
  "$1/bin/python" - "$1/bin" <<'EOF'
import sys
from importlib.metadata import entry_points
from pathlib import Path

for entry in entry_points(group="console_scripts", name="transformers"):
    command = Path(sys.argv[1], entry.name)
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n")
    command.chmod(0o755)
EOF
}

facts() {  # PYTHON: what the figures were measured on
  date -u +'date: %Y-%m-%d %H:%M UTC'
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | sed 's/^/GPU, driver, memory: /' || true
  "$1" - <<'EOF'
from importlib.metadata import PackageNotFoundError, version

for name in ("torch", "transformers", "nvidia-ml-py", "pytest", "pytest-infserver"):
    try:
        print(f"{name}: {version(name)}")
    except PackageNotFoundError:
        print(f"{name}: not installed")
EOF
}

run() {  # ARGS...
  local out=${OUT:-$PWD/gpu_check_results} work status=0 name
  work=$(mktemp -d)
  trap "rm -rf '$work'" EXIT
  mkdir -p "$out" "$work/results"
  environment "$work/env"
  facts "$work/env/bin/python" | tee "$work/results/figures.txt"
  # Other plugins of the machine are none of ours.
  PATH="$work/env/bin:$PATH" PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONUNBUFFERED=1 \
    timeout --signal INT --kill-after 30 "${LIMIT:-520}" "$work/env/bin/python" -m pytest \
    -o addopts= -p xdist.plugin -p pytest_infserver.plugin -p no:cacheprovider -m gpu --require-gpu -ra --durations=0 -v \
    --gpu-results "$work/results" --junitxml "$out/junit.xml" tests/gpu "$@" 2>&1 | tee "$out/output.txt" || status=$?
  for name in figures.txt run.json report.html; do
    [ ! -e "$work/results/$name" ] || cp "$work/results/$name" "$out"
  done
  tar -czf "$out/logs.tar.gz" -C "$work/results" .
  echo "gpu_check: exit status $status, $SECONDS s; results are in $out"
  return "$status"
}

over_ssh() {  # HOST ARGS...
  local host=$1 folder status=0 arguments
  shift
  folder=$(ssh "$host" mktemp -d)
  arguments=$(printf ' %q' run "$@")
  { git ls-files -coz --exclude-standard; find .gpu_check -type f -print0; } |
    tar -cz --null -T - | ssh "$host" "tar -xz -C '$folder'"
  ssh "$host" "cd '$folder' && OUT='$folder/out' PYTHON='${REMOTE_PYTHON:-python3}' LIMIT='${LIMIT:-520}' bash tools/gpu_check.sh$arguments" ||
    status=$?
  mkdir -p "${OUT:-gpu_check_results}"
  ssh "$host" "tar -cz -C '$folder/out' ." | tar -xz -C "${OUT:-gpu_check_results}"
  ssh "$host" "rm -rf '$folder'"
  return "$status"
}

case "${1:-}" in
  pack) pack ;;
  run) shift; run "$@" ;;
  ssh) shift; pack; over_ssh "$@" ;;
  *) pack; run "$@" ;;
esac

# shellcheck shell=bash disable=SC2034  # those that source it use what it sets
# What .ci/run and .ci/long begin with, from the root of the checkout: a clean clone in $scratch,
# in which they go on. Whatever is not committed is not tested.
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
newest=3.13 # the newest Python that all packages have wheels for

: "${SIMPO_JAX_TEST_DATA:=$root/../shared/data}"
export SIMPO_JAX_TEST_DATA

# The report's browser tests are skipped where there is no Chromium. It is fetched meanwhile.
if [[ $(id -u) == 0 ]] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then
  { apt-get -qq update && timeout 600 apt-get -qq install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 </dev/null || echo "no Chromium: the report's browser tests are skipped" &
fi

git clone --quiet "$root" "$scratch/simpo_jax"
cd "$scratch/simpo_jax" || exit
# The README shows the command between these two comments, inside a code block.
test_command=$(sed -n '/<!-- test-command -->/,/<!-- \/test-command -->/p' README.md | grep -v '^<!--\|^```')
pytest=${test_command##*/} # python -m pytest and its arguments

# version_of PYTHON: 3.11, say.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# find_python VERSION: the path of one, on PATH or of pyenv's; fails if there is none.
find_python() {
  local python
  for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python3; do
    if [[ $(version_of "$python" 2>/dev/null) == "$1" ]]; then
      command -v "$python"
      return
    fi
  done
  return 1
}

# timed LINES WHAT COMMAND...: runs it. $scratch/summary gets how long it took, and so many of its
# last lines.
timed() {
  local lines=$1 what=$2 start=$SECONDS code=0
  shift 2
  echo "+ $*"
  "$@" 2>&1 | tee "$scratch/log" || code=$?
  {
    echo "$what: $((SECONDS - start)) s, exit code $code"
    tail -n "$lines" "$scratch/log" | sed 's/^/  /'
  } >>"$scratch/summary"
  return $code
}

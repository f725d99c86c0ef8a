# Source this (bash or zsh) to use the workspace in your shell:
#
#     . scripts/env.sh
#
# Afterwards `python`, `colcon`, `e2e-perception` and the nodes under install/e2e_perception/lib/e2e_perception
# are the workspace's own. Run `make setup` first.

if [ -n "${BASH_VERSION:-}" ]; then
  _e2e_this="${BASH_SOURCE[0]}"
elif [ -n "${ZSH_VERSION:-}" ]; then
  _e2e_this="$(eval 'print -r -- ${(%):-%x}')"
else
  _e2e_this="$PWD/scripts/env.sh"
fi
_e2e_root="$(cd "$(dirname "$_e2e_this")/.." && pwd -P)"

if [ -f "$_e2e_root/.venv/setup.sh" ] && [ -f "$_e2e_root/install/setup.sh" ]; then
  export VIRTUAL_ENV="$_e2e_root/.venv"
  . "$_e2e_root/.venv/setup.sh"
  COLCON_CURRENT_PREFIX="$_e2e_root/install"
  . "$_e2e_root/install/setup.sh"
  unset COLCON_CURRENT_PREFIX _e2e_this _e2e_root
else
  echo "the workspace in $_e2e_root is not set up; run: make -C $_e2e_root setup" >&2
  unset _e2e_this _e2e_root
  return 1
fi

#!/usr/bin/env bash
# Install every peer into an environment of its own: .venv-peers/<peer>. Run again after a requirements file changed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

for requirements in benchmarks/peers/*-requirements.txt; do
    peer=$(basename "$requirements" -requirements.txt)
    environment=.venv-peers/$peer
    if cmp --silent "$requirements" "$environment/installed.txt"; then
        continue
    fi
    echo "peer $peer -> $environment"
    "$python" -m venv "$environment"
    # torch alone and first: a bare `torch` asked for by another package would bring gigabytes of CUDA libraries.
    "$environment/bin/pip" install --quiet "$(grep '^torch==' "$requirements")"
    "$environment/bin/pip" install --quiet --requirement <(grep -v '^--no-deps' "$requirements")
    if alone=$(grep '^--no-deps' "$requirements"); then
        "$environment/bin/pip" install --quiet --ignore-requires-python $alone
    fi
    cp "$requirements" "$environment/installed.txt"
done

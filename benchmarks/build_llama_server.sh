#!/bin/sh
# Build llama-server on llama-cpp-python's own libraries; once, about 3 minutes on 2 cores.
# usage: benchmarks/build_llama_server.sh LLAMA_CPP_SOURCE LIBRARIES INTO    (result: INTO/bin/llama-server)
set -eu

source=$1 libraries=$2 into=$3
[ -x "$into/bin/llama-server" ] && [ "$into/bin/llama-server" -nt "$libraries/libllama.so" ] && exit 0
command -v cmake >/dev/null || { echo "there is no cmake" >&2 && exit 1; }
[ -e "$libraries/libllama.so" ] || { echo "llama-cpp-python has no shared libraries of a kind known here" >&2 && exit 1; }
echo "building llama-server: about 3 minutes on 2 cores"
build="$into/build/llama-server"
cmake -S "$(dirname "$0")/llama_server" -B "$build" -DSOURCE="$source" -DLIBRARIES="$libraries" >"$into/llama-server.log"
if ! cmake --build "$build" --target llama-server --parallel "$(nproc)" >>"$into/llama-server.log"; then
    tail -n 20 "$into/llama-server.log" >&2
    exit 1
fi
cp "$build/server/llama-server" "$into/bin/llama-server"
rm -rf "$build"

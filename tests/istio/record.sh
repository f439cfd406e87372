#!/bin/sh
# Records anew what Istio answers to the corpus: tests/istio/sets-*.txt. Needs Go and, the first time, the module proxy.
# The version of Istio is the one in go.mod; the sets are the same for the same generator.
set -eu
cd "$(dirname "$0")"
RECORD_DIR="$PWD" CGO_ENABLED=0 exec "${GO:-go}" test -vet=off -count=1 -timeout 60m -run '^TestRecord$' .

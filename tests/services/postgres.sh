#!/usr/bin/env bash
# A PostgreSQL server on 127.0.0.1 whose database "postgres" anybody may use.
#   tests/services/postgres.sh up DIR PORT      a new one, or one that was stopped or killed, with all that it has
#   tests/services/postgres.sh kill DIR PORT    as a crash would: no process of it is left
#   tests/services/postgres.sh down DIR PORT
# Debian package: postgresql. What it has confirmed survives a kill, but not a power cut.
set -euo pipefail
COMMAND=$1 DIR=$2 PORT=$3
BIN=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
as() { if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; } # it refuses to run as root

case $COMMAND in
  up)
    mkdir -p "$DIR"
    [ "$(id -u)" != 0 ] || chown postgres "$DIR"
    [ -d "$DIR/data" ] || as "$BIN/initdb" -D "$DIR/data" -A trust -U postgres --no-sync -E UTF8 --locale=C > "$DIR/initdb.log"
    as "$BIN/pg_ctl" -D "$DIR/data" -w -t 60 -l "$DIR/log" \
      -o "-p $PORT -k $DIR -c listen_addresses=127.0.0.1 -c max_connections=100 -c fsync=off" start > /dev/null
    ;;
  kill)
    main=$(head -1 "$DIR/data/postmaster.pid")
    children=$(pgrep -P "$main" || true)
    kill -9 "$main" $children 2> /dev/null || true
    while kill -0 "$main" 2> /dev/null; do sleep 0.05; done
    ;;
  down) as "$BIN/pg_ctl" -D "$DIR/data" -w -m immediate stop > /dev/null ;;
esac

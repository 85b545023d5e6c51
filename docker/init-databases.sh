#!/bin/sh
# Run once by the database's image, when its volume is empty: Dagster's database and ours, each with a role that has
# no right in the other.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
-- A statement that fails is not logged with its password.
SET log_min_error_statement = panic;
\getenv dagster_password DAGSTER_PG_PASSWORD
\getenv pipeline_password TRIANGULATION_PG_PASSWORD
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
CREATE ROLE pipeline LOGIN PASSWORD :'pipeline_password';
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE triangulation;
REVOKE ALL ON DATABASE dagster, triangulation FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE triangulation TO pipeline;
\connect triangulation
CREATE EXTENSION IF NOT EXISTS timescaledb;
SQL

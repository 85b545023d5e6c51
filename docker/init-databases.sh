#!/bin/sh
# The image of the database runs this once, when its volume is empty. It makes Dagster's database and ours. Each has a role
# that may connect to it and owns the one schema with its tables. It has no other right: none to make schemas, extensions
# or temporary tables, and none in the other database or in those of the server.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
-- A statement that fails is not logged with its password.
SET log_min_error_statement = panic;
\getenv dagster_password DAGSTER_PG_PASSWORD
\getenv pipeline_password TRIANGULATION_PG_PASSWORD
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
CREATE ROLE pipeline LOGIN PASSWORD :'pipeline_password';
CREATE DATABASE dagster;
CREATE DATABASE triangulation;
REVOKE ALL ON DATABASE dagster, triangulation, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE dagster TO dagster;
GRANT CONNECT ON DATABASE triangulation TO pipeline;
\connect dagster
ALTER SCHEMA public OWNER TO dagster;
\connect triangulation
CREATE EXTENSION IF NOT EXISTS timescaledb;
CREATE SCHEMA triangulation AUTHORIZATION pipeline;
SQL

-- Accounts own devices; devices report positions; credentials let devices and gateways report; shares let others look.

CREATE TABLE accounts (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email         text NOT NULL CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 80),
    password_hash text NOT NULL,
    demo          boolean NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (email)
);

CREATE TABLE devices (
    id         text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$'),
    account_id bigint NOT NULL REFERENCES accounts (id),
    name       text NOT NULL DEFAULT '',
    kind       text NOT NULL DEFAULT 'other',
    callsign   text NOT NULL DEFAULT '',
    length_m   real,
    width_m    real,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX devices_by_account ON devices (account_id);

-- Only the SHA-256 of a token is kept: tokens are 256 random bits, so a slow hash would protect nothing.
CREATE TABLE credentials (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_hash text NOT NULL UNIQUE,
    account_id bigint NOT NULL REFERENCES accounts (id),
    device_id  text REFERENCES devices (id),  -- NULL: a gateway, which reports for all devices of the account
    label      text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX credentials_by_device ON credentials (device_id);
CREATE INDEX credentials_by_account ON credentials (account_id);

CREATE TABLE shares (
    owner_id   bigint NOT NULL REFERENCES accounts (id),
    viewer_id  bigint NOT NULL REFERENCES accounts (id),
    device_id  text REFERENCES devices (id),  -- NULL: all devices of the owner
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (owner_id, viewer_id, device_id)
);

-- One row per device and time, whatever is sent twice. No foreign key to devices: it is checked when a position is
-- accepted, and once more for each of a thousand rows in a COPY would be paid for nothing.
CREATE TABLE positions (
    device_id   text NOT NULL,
    time        timestamptz NOT NULL,
    lat         double precision NOT NULL,
    lon         double precision NOT NULL,
    speed_kn    real,
    course_deg  real,
    heading_deg real,
    PRIMARY KEY (device_id, time)
);

-- What each persister has written, counted in the transactions that wrote it: the sum is exact and cheap.
CREATE TABLE persisted (
    instance   text PRIMARY KEY,
    stored     bigint NOT NULL,
    duplicates bigint NOT NULL
);

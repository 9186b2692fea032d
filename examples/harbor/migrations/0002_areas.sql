-- Areas that accounts draw on the map, and the alerts of vessels that entered or left them.

-- A name tells an account's areas apart, so drawing the same area again (after a lost answer) makes no second one.
-- points: [[lat, lon], ...], 3 to 100 corners, the first not repeated. They never change.
CREATE TABLE areas (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner_id   bigint NOT NULL REFERENCES accounts (id),
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 60),
    colour     text NOT NULL,
    points     jsonb NOT NULL CHECK (jsonb_typeof(points) = 'array' AND jsonb_array_length(points) BETWEEN 3 AND 100),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner_id, name)
);

-- at: the time of the first fix on the other side of the border; since: the time at which the stay began. A job that goes
-- on elsewhere raises the same crossings once more; the unique key keeps one of each.
CREATE TABLE alerts (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    area_id   bigint NOT NULL REFERENCES areas (id) ON DELETE CASCADE,
    device_id text NOT NULL REFERENCES devices (id),
    kind      text NOT NULL CHECK (kind IN ('enter', 'leave')),
    at        timestamptz NOT NULL,
    since     timestamptz NOT NULL,
    lat       double precision NOT NULL,
    lon       double precision NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (device_id, area_id, at, kind)
);
CREATE INDEX alerts_by_area ON alerts (area_id, id);

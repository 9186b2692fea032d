-- Users talk in rooms. A direct room belongs to two users and is nobody else's.

CREATE TABLE users (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_.-]{1,29}$'),
    display       text NOT NULL CHECK (length(display) BETWEEN 1 AND 60),
    password_hash text NOT NULL,
    demo          boolean NOT NULL DEFAULT false,  -- may be signed in to without a password, in a demonstration only
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz
);

-- last_id counts the messages of the room. Whoever posts takes the next number by updating this row, and holds its lock
-- until the message is committed: so numbers have no gaps and become visible in their order. A reader who has 7 and is
-- told 9 knows that 8 exists, and "everything after 7" never misses one that was committed late.
CREATE TABLE rooms (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('open', 'direct')),
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 60),
    topic      text NOT NULL DEFAULT '' CHECK (length(topic) <= 200),
    last_id    bigint NOT NULL DEFAULT 0,
    created_by bigint REFERENCES users (id),
    created_at timestamptz NOT NULL DEFAULT now()
);
-- One open room of a name; a direct room is named after its two users ("3:7"), so there is one for each pair.
CREATE UNIQUE INDEX rooms_by_name ON rooms (kind, lower(name));

CREATE TABLE members (
    room_id   bigint NOT NULL REFERENCES rooms (id),
    user_id   bigint NOT NULL REFERENCES users (id),
    read_id   bigint NOT NULL DEFAULT 0,  -- unread messages: rooms.last_id - read_id
    joined_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (room_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);

CREATE TABLE messages (
    room_id    bigint NOT NULL REFERENCES rooms (id),
    id         bigint NOT NULL,
    user_id    bigint NOT NULL REFERENCES users (id),
    client_id  uuid NOT NULL,  -- the sender's own name for it: sent again after a lost answer, it is the same message
    body       text NOT NULL CHECK (length(body) BETWEEN 1 AND 4000),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (room_id, id),
    UNIQUE (user_id, client_id)
);

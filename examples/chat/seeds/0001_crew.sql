-- The crew of the demonstration. None of them has a password that could be entered: only `QUAY_DEMO=1` lets anybody in
-- as one of them.

INSERT INTO users (name, display, password_hash, demo) VALUES
    ('ada', 'Ada Lovelace', '!', true),
    ('grace', 'Grace Hopper', '!', true),
    ('linus', 'Linus Pauling', '!', true),
    ('mary', 'Mary Somerville', '!', true);

INSERT INTO rooms (kind, name, topic, created_by)
SELECT 'open', room.name, room.topic, users.id
FROM users, (VALUES
    ('Quayside', 'Everybody meets here'),
    ('Deploys', 'What ships today, and what came back'),
    ('Galley', 'Lunch, coffee, leftovers')
) AS room (name, topic)
WHERE users.name = 'ada';

INSERT INTO members (room_id, user_id)
SELECT rooms.id, users.id FROM rooms, users
WHERE users.demo AND (rooms.name IN ('Quayside', 'Deploys') OR users.name IN ('ada', 'mary'));

-- What was said before anybody came.

WITH said (room, n, name, body, ago) AS (VALUES
    ('Quayside', 1, 'ada', 'Welcome to Quay. Three instances serve this room; the dot at the top says which one has you.', interval '26 hours'),
    ('Quayside', 2, 'grace', 'Kill mine with kill -9 and watch: I keep typing, nothing is lost.', interval '25 hours'),
    ('Quayside', 3, 'linus', 'Tried it. My message showed a clock for a second, then a tick.', interval '25 hours' - interval '3 minutes'),
    ('Quayside', 4, 'mary', 'Same number, same place, once. Good.', interval '3 hours'),
    ('Deploys', 1, 'grace', 'Migrations ran on one instance, the other two waited for it.', interval '5 hours'),
    ('Deploys', 2, 'ada', 'And these lines were seeded exactly once.', interval '5 hours' - interval '1 minute'),
    ('Galley', 1, 'mary', 'There is soup.', interval '50 minutes')
), stored AS (
    INSERT INTO messages (room_id, id, user_id, client_id, body, created_at)
    SELECT rooms.id, said.n, users.id, gen_random_uuid(), said.body, now() - said.ago
    FROM said JOIN rooms ON rooms.kind = 'open' AND rooms.name = said.room JOIN users ON users.name = said.name
    RETURNING room_id, id
)
UPDATE rooms SET last_id = newest.id
FROM (SELECT room_id, max(id) AS id FROM stored GROUP BY room_id) AS newest
WHERE rooms.id = newest.room_id;

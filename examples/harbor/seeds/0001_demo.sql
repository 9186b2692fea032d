-- The two accounts of the demonstration. Neither has a password that could be entered: the page's demo session, and the
-- gateway token that the demonstration makes anew at each start, are the only ways in.

INSERT INTO accounts (email, name, password_hash, demo) VALUES
    ('fleet@harbor.example', 'New York harbor feed', '!', false),
    ('demo@harbor.example', 'Demo viewer', '!', true);

INSERT INTO shares (owner_id, viewer_id, device_id)
SELECT owner.id, viewer.id, NULL
FROM accounts AS owner, accounts AS viewer
WHERE owner.email = 'fleet@harbor.example' AND viewer.email = 'demo@harbor.example';

-- Writes the records that an instance has and Redis has not (any more).
-- ARGV: instance, lease in ms, 1 if they were lost with the data (nobody is told) else 0, then connection, user, socket
-- id and record of each.
hold_lease(ARGV[1], tonumber(ARGV[2]))
for i = 4, #ARGV, 4 do
  put(ARGV[1], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[3] == '1')
end
return #ARGV

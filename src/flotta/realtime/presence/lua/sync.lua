-- Writes the records that an instance has and Redis has not (any more).
-- ARGV: instance, lease in ms, how ('quiet': they were lost with the data, and nobody is told; 'take': also what another
-- live instance has, for the sockets have come from there; else ''), the epoch that the instance knows (there is another
-- one, or none: the data was lost this moment, which is quiet too, for the instance will say so with its next beat), then
-- connection, user, socket id and record of each.
hold_lease(ARGV[1], tonumber(ARGV[2]))
local quiet = ARGV[3] == 'quiet' or redis.call('HGET', META, 'epoch') ~= ARGV[4]
for i = 5, #ARGV, 4 do
  put(ARGV[1], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], quiet, ARGV[3] == 'take')
end
return #ARGV

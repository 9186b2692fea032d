-- Sockets are gone. What another instance has taken over meanwhile stays.
-- ARGV: instance, then user and socket id of each.
for i = 2, #ARGV, 2 do
  drop(ARGV[1], ARGV[i], ARGV[i + 1])
end
return #ARGV

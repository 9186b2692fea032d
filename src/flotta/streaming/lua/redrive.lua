-- Puts dead letters back on their stream, addressed to the one sink that could not process them.
-- KEYS[1] dead-letter stream   KEYS[2] stream   ARGV: sink, ids...
-- Returns the new ids, in order; ids that are not (or no longer) in the dead-letter stream are passed over.
local added = {}
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then
    local fields, source = {}, entry[2]
    for j = 1, #source, 2 do
      if source[j] == 'n' or source[j] == 'p' or source[j] == 't' then
        fields[#fields + 1] = source[j]
        fields[#fields + 1] = source[j + 1]
      end
    end
    fields[#fields + 1] = 'g'
    fields[#fields + 1] = ARGV[1]
    added[#added + 1] = redis.call('XADD', KEYS[2], '*', unpack(fields))
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
return added

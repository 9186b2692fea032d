-- Append ARGV[5...] to the list at key ARGV[4]. Returns the stored list (false: no list and nothing to append).
local stored = redis.call("HGET", hash, ARGV[4])
if #ARGV > 4 then
  local items = read_items(stored)
  for i = 5, #ARGV do
    table.insert(items, ARGV[i])
  end
  stored = cjson.encode(items)
  commit_set(ARGV[4], stored)
end
return finish(stored)

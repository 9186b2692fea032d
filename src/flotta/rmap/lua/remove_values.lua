-- Remove every ARGV[5...] from the list at key ARGV[4]; with its last item the key goes.
-- Returns whether anything was removed, and the stored list (false: no key).
local stored = redis.call("HGET", hash, ARGV[4])
local unwanted, remaining, removed = {}, {}, false
for i = 5, #ARGV do
  unwanted[ARGV[i]] = true
end
if stored and #ARGV > 4 then
  for _, item in ipairs(read_items(stored)) do
    if unwanted[item] then
      removed = true
    else
      table.insert(remaining, item)
    end
  end
end
if removed and #remaining == 0 then
  commit_delete(ARGV[4])
  stored = false
elseif removed then
  stored = cjson.encode(remaining)
  commit_set(ARGV[4], stored)
end
return finish(removed and 1 or 0, stored)

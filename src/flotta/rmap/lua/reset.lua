-- Empty the map. ARGV[4] is what subscribers of other languages are told: "reset" or "destroy".
commit_reset(ARGV[4])
return finish()

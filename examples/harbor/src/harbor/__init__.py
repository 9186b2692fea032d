"""Harbor: live tracking of vessels, on any number of instances. It uses Flotta as any user could."""

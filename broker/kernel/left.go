package kernel

// What an earlier process has left, for the log: Set adopts it.

// Left counts what is in the kernel already of what Set would make.
type Left struct {
	Device                   bool // the device is there
	Addresses, Routes, Rules int
}

// FindLeft looks at the kernel, and changes nothing.
func (k *Kernel) FindLeft() Left {
	k.setting.Lock()
	defer k.setting.Unlock()
	found := k.system.Dump(k.config.Device, "")
	ours := divideObjects(*found, k.findOldDevices(*found)).ours
	return Left{
		Device: found.link.Index != 0, Addresses: len(ours.addresses), Routes: len(ours.routes), Rules: len(ours.rules),
	}
}

package records

// Limits, as names multiply where zones with several names nest.
const (
	maxZoneNames      = 64      // of a HostedZone
	maxEntryNames     = 256     // of a CoreDNSEntry
	maxNames          = 250_000 // of all together
	maxNamespaceNames = 50_000  // of the objects of one namespace, other than kubelink's
	maxRecords        = 256     // of one type at one name: more hardly fit an answer
	maxText           = 4096    // bytes of a TXT record
	maxAliases        = 16      // that are followed
	maxName           = 254     // characters of a name with final dot (RFC 1035: 255 octets)
)

package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// maxLabel is the longest DNS label.
const maxLabel = 63

var (
	dns1035 = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`) // what a Service may be called
	hashed  = regexp.MustCompile(`-[0-9a-f]{16}$`)
	notDNS  = regexp.MustCompile(`[^-a-z0-9]`)
)

// Name gives the name of all objects of a Gateway's fleet: `<gateway>-<class>` as GEP-1762 has it, where that is a DNS label and can be read back in
// one way only. Else it is as much of that as fits, and a hash of both names: a Gateway's name may have 253 characters and dots, and `a-b` of class
// `c` must not be `a` of class `b-c`. So no two fleets of a namespace share a name.
func Name(gateway, class string) string {
	plain := gateway + "-" + class
	if !strings.Contains(class, "-") && len(plain) <= maxLabel && dns1035.MatchString(plain) && !hashed.MatchString(plain) {
		return plain
	}
	return shortened(plain, gateway+"/"+class) // neither holds a slash
}

// shortened is a DNS label that begins like name and ends with a hash of id.
func shortened(name, id string) string {
	sum := sha256.Sum256([]byte(id))
	name = notDNS.ReplaceAllString(name, "-")
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		name = "g-" + name
	}
	name = strings.TrimRight(name[:min(len(name), maxLabel-17)], "-")
	return name + "-" + hex.EncodeToString(sum[:8])
}

// labelValue makes a label's value of an object's name: itself, where it fits.
func labelValue(name string) string {
	if len(name) <= maxLabel {
		return name
	}
	return shortened(name, name)
}

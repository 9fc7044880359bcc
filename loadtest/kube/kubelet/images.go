// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Images says what the images that pods name stand for. A key is a name with or without registry and tag: a pod's image is looked up whole first, then without
// its tag or digest, then by the last part of its path alone.
type Images map[string]Image

// Image is the stand-in for a container image.
type Image struct {
	// Binary is a program of the machine that the container sees at the path Entrypoint[0], which must not be below /usr; the rest of its file system is the machine's programs, read-only.
	Binary string
	// Root is a directory that the container sees as its root and whose files it may change for itself; "/" is the machine's own. It replaces the file
	// system that comes with Binary.
	Root string
	// Entrypoint is the command of a container that names none, and what its args are added to.
	Entrypoint []string
	// Cmd is what a container runs, or what is added to Entrypoint, if it names neither command nor args.
	Cmd []string
	// Env is what the container's own environment is added to.
	Env []string
	// User and Group are what containers run as that name no user.
	User, Group uint32
	// Dir is the working directory of containers that name none.
	Dir string
}

// find looks up an image; the error lists what there is.
func (m Images) find(name string) (Image, error) {
	for _, key := range imageKeys(name) {
		if image, ok := m[key]; ok {
			return image, nil
		}
	}
	return Image{}, fmt.Errorf("no image %q: a local cluster pulls nothing, it knows %s", name, strings.Join(slices.Sorted(maps.Keys(m)), ", "))
}

// imageKeys are the keys that an image name may be listed under, the most exact first.
func imageKeys(name string) []string {
	plain, _, _ := strings.Cut(name, "@")
	if i := strings.LastIndex(plain, ":"); i > strings.LastIndex(plain, "/") {
		plain = plain[:i]
	}
	return []string{name, plain, name[strings.LastIndex(name, "/")+1:], plain[strings.LastIndex(plain, "/")+1:]}
}
